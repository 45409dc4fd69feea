"""Trackers that go on in the same curve when a run is continued: trackio, TensorBoard, Weights & Biases.

Used by maths_finetuning.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). transformers names a run of a
tracker after the clock or at random, so that each start of a run that was stopped would be a curve of its own. Steps
that are trained again after a kill are logged again, with the same values; plot against train/global_step. Of several
trackers a recipe (--config) takes a list, `report_to: [trackio, tensorboard]`; the flag takes one.

    python maths_finetuning.py --model demo --trust_region_method pspo --report_to trackio
    trackio show --project huggingface      # pip install trackio; no account, no network
    tensorboard --logdir runs               # --report_to tensorboard, pip install tensorboard
    wandb sync RUN/wandb/offline-run-*      # --report_to wandb, pip install wandb; where there is internet
"""

import os
from pathlib import Path

from common.files import BadInput, hash_value

PACKAGES = {"comet_ml": "comet-ml", "azure_ml": "azureml-mlflow"}  # where pip's name is not the tracker's
TENSORBOARD_DIR = "tensorboard"  # in the run directory
ID_LENGTH = 16


def check_trackers(report_to):
    """Raises BadInput for a tracker (a name of --report_to) that is not installed, with what is to be installed."""
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    for name in report_to:
        if name not in available:
            package = PACKAGES.get(name, name)
            raise BadInput(f"--report_to {name}: not installed here (pip install {package}, or --report_to none)")


def name_curve(config, started):
    """Give the trackers of a run the same name and place each time it is started; call it before the trainer is made.

    config: the trainer's; its run_name is set where the user gave none. started: when the run began, which tells it
    from one that --overwrite moved aside. Variables that the user has set are left alone.
    """
    path = Path(config.output_dir)
    if config.run_name in (None, config.output_dir):
        config.run_name = f"{'/'.join(path.parts[-3:])} {started}"
    curve = hash_value([str(path.absolute()), started])[:ID_LENGTH]
    defaults = {
        "TENSORBOARD_LOGGING_DIR": str(path / TENSORBOARD_DIR),
        "WANDB_MODE": "offline",  # compute nodes have no network; `wandb sync` uploads later
        "WANDB_DIR": str(path),
        "WANDB_RUN_ID": curve,
        "WANDB_RESUME": "allow",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
