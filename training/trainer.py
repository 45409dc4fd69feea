"""TRL's GRPOTrainer that does no work twice: a prompt is read once, old log-probabilities are not computed again.

Used by maths_finetuning.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). The loss is that of the
patched GRPOTrainer. What differs is rounding: log-probabilities come from training/shared_prompts.py, the rows of an
update are split into micro-batches by their prompts, and where no update lies between a generation and the end of the
first pass over it, that pass is the behaviour policy itself: its ratio is exactly 1.

    ThriftyGRPOTrainer(model=model, reward_funcs=..., args=..., train_dataset=...)
"""

import torch
from accelerate.utils import is_peft_model
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from common.files import BadInput
from sampling.check import TOLERANCE
from training.shared_prompts import find_obstacle, find_prompts, install, pack

CHECKED_ROWS = 16  # of the first forward of a run
OLD = "old_per_token_logps"  # TRL's key in the inputs of a micro-batch


class ThriftyGRPOTrainer(GRPOTrainer):
    """GRPOTrainer with the same arguments, gradients and metrics, up to rounding.

    obstacle: why a prompt is read again for every completion, as TRL does it, or None.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._is_checked = False
        self._skips_next_pass = False
        self._micro_batch = None
        models = [self.accelerator.unwrap_model(model) for model in (self.model, self.ref_model) if model is not None]
        models = [model.get_base_model() if is_peft_model(model) else model for model in models]
        obstacles = ["experts"] if self.aux_loss_enabled else [find_obstacle(model) for model in models]
        self.obstacle = next(filter(None, obstacles), None)
        if self.obstacle is None:
            for model in models:
                install(model)

    # ---- a prompt is read once

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **others
    ):
        """As GRPOTrainer's: (log-probabilities, entropies or None), [rows, completion] each, and a loss of experts."""
        if self._skips_next_pass:
            self._skips_next_pass = False
            return None, None, None
        batch = (input_ids, attention_mask, logits_to_keep)
        is_text = all(value is None or value is False for value in others.values())
        if self.obstacle is None and is_text and not self._is_checked:
            self._check_shared_prompts(model, *batch)
        if self.obstacle is None and is_text:
            result = self._read_in_parts(model, batch, batch_size, compute_entropy)
        else:
            result = super()._get_per_token_logps_and_entropies(model, *batch, batch_size, compute_entropy, **others)
        if self._micro_batch is not None and self._micro_batch.get(OLD, 0) is None:
            self._micro_batch[OLD] = result[0].detach()
        return result

    def _read_in_parts(self, model, batch, batch_size, compute_entropy):
        """_read_once for `batch_size` rows at a time."""
        input_ids, attention_mask, completion_width = batch
        size = batch_size or len(input_ids)
        parts = zip(input_ids.split(size), attention_mask.split(size), strict=True)
        results = [self._read_once(model, (*part, completion_width), compute_entropy) for part in parts]
        logps, entropies, _ = zip(*results, strict=True)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _read_once(self, model, batch, compute_entropy=False):
        """As GRPOTrainer's, each prompt read once; where there is nothing to score, TRL's forward."""
        packed = pack(*batch)
        if packed is None:
            return super()._get_per_token_logps_and_entropies(model, *batch, compute_entropy=compute_entropy)
        with self.accelerator.autocast():
            output = model(**packed.model_inputs(), fused_lm_head=True)
        return packed.unpack(output.log_probs), packed.unpack(output.entropy) if compute_entropy else None, None

    def _check_shared_prompts(self, model, input_ids, attention_mask, completion_width):
        """Hold some rows against TRL's own forward; where rounding does not explain the difference, keep to that."""
        self._is_checked = True
        prompt = slice(0, -completion_width)
        prompts, _ = find_prompts(input_ids[:, prompt].cpu(), attention_mask[:, prompt].cpu())
        rows = prompts.argsort(stable=True)[:CHECKED_ROWS].to(input_ids.device)
        batch = (input_ids[rows], attention_mask[rows], completion_width)
        was_training = model.training
        model.eval()  # without dropout
        with torch.no_grad():
            ours, _, _ = self._read_once(model, batch)
            theirs, _, _ = super()._get_per_token_logps_and_entropies(model, *batch)
        model.train(was_training)
        tokens = batch[1][:, -completion_width:].sum().clamp(min=1)
        difference = self.accelerator.gather((ours - theirs).abs().sum() / tokens).max().item()
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        bound = TOLERANCE.get(autocast or next(model.parameters()).dtype, TOLERANCE[torch.float32])
        if not difference <= bound:
            self.obstacle = f"else its log-probabilities differ by {difference:.2g}, where rounding explains {bound:g}"
            if self.accelerator.is_main_process:
                print(f"prompts: {self.describe_prompts()}")

    def describe_prompts(self):
        """How the forward reads prompts, in a line."""
        if self.obstacle:
            return f"each is read again for every completion ({self.obstacle})"
        return "each is read once for all its completions (held against TRL's forward at the first batch)"

    # ---- the first pass knows the old log-probabilities

    def _generate_and_score_completions(self, inputs):
        """As GRPOTrainer's; where the first pass will know the old log-probabilities they are None until then."""
        first_pass_knows = self._first_pass_knows()
        self._skips_next_pass = first_pass_knows
        output = super()._generate_and_score_completions(inputs)
        return {**output, OLD: None} if first_pass_knows else output

    def _first_pass_knows(self):
        """Whether GRPOTrainer would compute old log-probabilities that the first pass over a generation computes again.

        It does if no update comes before the end of that pass: a step is a whole number of generations.
        """
        accumulation = self.args.gradient_accumulation_steps
        per_generation = self.args.steps_per_generation
        is_computed = accumulation % (per_generation * self.num_iterations) != 0
        is_used_before = self.use_vllm and self.vllm_importance_sampling_correction
        is_masked_by = self.off_policy_mask_threshold is not None
        is_aligned = accumulation % per_generation == 0 or not self.model.training  # validation updates nothing
        return is_computed and is_aligned and not is_used_before and not is_masked_by

    # ---- the rows of a prompt side by side

    def _prepare_inputs(self, generation_batch):
        """As GRPOTrainer's, with the rows of each update split into micro-batches by their prompts."""
        self._micro_batch = None
        per_generation = self.args.steps_per_generation
        begins = self._buffered_inputs is None or self._step % (per_generation * self.num_iterations) == 0
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training:
            if begins and self._may_gather():
                window = min(self.args.gradient_accumulation_steps, per_generation)
                parts = [self._buffered_inputs[i : i + window] for i in range(0, per_generation, window)]
                self._buffered_inputs = [batch for part in parts for batch in gather_prompts(part)]
            inputs = self._buffered_inputs[self._step % per_generation]
        self._micro_batch = inputs
        return inputs

    def _may_gather(self):
        """Whether the gradient of an update is the same however its rows are split into micro-batches."""
        accumulation = self.args.gradient_accumulation_steps
        per_generation = self.args.steps_per_generation
        is_aligned = accumulation % per_generation == 0 or per_generation % accumulation == 0
        by_micro_batch = self.loss_type == "bnpo" or self._entropy_bonus_enabled or self.top_entropy_quantile < 1
        return self.obstacle is None and is_aligned and not by_micro_batch


def gather_prompts(batches):
    """The micro-batches of one update (TRL's dicts), with the rows of a prompt side by side in them."""
    merged = {}
    for key, value in batches[0].items():
        is_rows = isinstance(value, torch.Tensor) and value.ndim > 0
        merged[key] = torch.cat([batch[key] for batch in batches]) if is_rows else value
    prompts, _ = find_prompts(merged["prompt_ids"].cpu(), merged["prompt_mask"].cpu())
    order = prompts.argsort(stable=True).to(merged["prompt_ids"].device)
    for key, value in merged.items():
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            merged[key] = value[order]
    return split_tensor_dict(merged, len(batches))


def construct(trainer_class, arguments):
    """A trainer of these arguments; raises BadInput for what its constructor refuses, which names the option."""
    try:
        trainer = trainer_class(**arguments)
    except (ValueError, ImportError) as error:
        raise BadInput(f"TRL's trainer refuses this configuration: {' '.join(str(error).split())}") from None
    trainer.create_model_card = lambda *_, **__: None  # TRL's knows nothing of a run; ours is written at its end
    return trainer
