"""SmolLM2-135M-Instruct, a real pretrained model that a package on the index carries, and the data sets it is asked."""

NAME = "SmolLM2-135M-Instruct"
SETS = ["gsm8k", "MATH-500", "asdiv", "SVAMP"]
