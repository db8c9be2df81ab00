"""The optimisers by name, `train.optimizer` in params.yaml. It loads no torch.

A further one is a function of the parameter groups, the network and options, and an entry here.
"""

from dataclasses import dataclass

from diffusion.system.registry import BuilderEntry, Registry, WithOptions

IN_CODE_DIGEST = False  # diffusion/code_digest.py


@dataclass(frozen=True)
class OptimizerEntry(BuilderEntry, WithOptions):
    """`builder` makes a torch Optimizer of groups, a network and options; `options` is their class.

    Each is a "module:name", the options without torch. A group has `params` and `weight_decay`, and a step
    sets its `lr`. One that `is_elementwise` can update a part of a tensor alone, as sharding needs.
    """

    builder: str
    source: str
    options: str = "diffusion.train.optimizers.optimizer_options:AdamOptions"
    is_elementwise: bool = True


OPTIMIZERS: Registry[OptimizerEntry] = Registry(
    "train.optimizer",
    "parameter groups, `nn.Module`, options → `torch.optim.Optimizer`",
    {
        "adamw": OptimizerEntry(
            "diffusion.train.optimizers.builders:adamw", "Loshchilov and Hutter 2019, 1711.05101",
        ),
        "muon": OptimizerEntry(
            "diffusion.train.optimizers.builders:muon", "Jordan et al. 2024; Liu et al. 2025, 2502.16982",
            options="diffusion.train.optimizers.optimizer_options:MuonOptions", is_elementwise=False,
        ),
        "radam": OptimizerEntry("diffusion.train.optimizers.builders:radam", "Liu et al. 2020, 1908.03265"),
    },
)  # fmt: skip
