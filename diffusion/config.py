"""params.yaml as a whole: composes the sections' own classes and checks that they agree.

A section of params.yaml holds a stage's parameters; its class is in that package. Unknown keys and
impossible combinations are refused with the field's name and what is allowed. No torch below this module's
import, so that the command line can validate in milliseconds.
"""

from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from diffusion.evaluate.evaluate_config import EvaluateConfig
from diffusion.process.process_registry import DiscreteConfig
from diffusion.protocol.guidance_rules import GUIDANCE_RULES, ema_guide, implied_rule
from diffusion.protocol.sample_sections import SampleConfig, SweepConfig, axis_values, check_axes
from diffusion.protocol.samplers import SAMPLERS, without_eta
from diffusion.protocol.spacing import check_steps
from diffusion.search.search_config import SearchConfig
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_NAME
from diffusion.system.params import PARAMS, read_params
from diffusion.system.section import Section, validate
from diffusion.train.train_config import ClassifierConfig, TrainSections


class TrackingConfig(Section):
    """`title` names the images in MLflow: the experiment and the registered model are diffctl-TITLE.

    None: the last component of `data.path` for one's own images, else `data.name`. No stage depends on it.
    """

    title: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=MAX_NAME)] | None = None


class Config(TrainSections):
    """The whole experiment: params.yaml.

    A `classifier` and a `search` are opt-in and no part of the pipeline. A search and `tracking` describe no
    training, so that they are left out wherever a configuration is written down.
    """

    sample: SampleConfig
    sweep: SweepConfig
    evaluate: EvaluateConfig
    classifier: ClassifierConfig | None = None
    search: SearchConfig | None = Field(default=None, exclude=True)
    tracking: TrackingConfig = Field(default=TrackingConfig(), exclude=True)

    @model_validator(mode="after")
    def _steps_are_there(self) -> Self:
        whole = self.process.timesteps if isinstance(self.process, DiscreteConfig) else None
        listed = [("sweep.steps", *pair) for pair in product(self._axis("spacing")[1], self.sweep.steps)]
        if self.train.eval_every:
            scored = min(self.train.eval_steps, self.process.max_steps)
            listed.append(("train.eval_steps", self.sample.spacing, scored))
        for field, spacing, steps in listed:
            try:
                check_steps(spacing, steps, whole)
            except UsageError as error:
                raise ValueError(f"{field}: {error}") from None
        return self

    @model_validator(mode="after")
    def _grid_is_possible(self) -> Self:
        noise, sampler = (self._axis(name) for name in ("noise", "sampler"))
        if "learned" in noise[1] and not self.process.learned_variance:
            raise ValueError(f"{noise[0]} learned needs process.variance learned")
        if any(self.sweep.eta) and not any(SAMPLERS[name].uses_eta for name in sampler[1]):
            raise ValueError(f"{without_eta(sampler[0], sampler[1][0])}, so sweep.eta must be [0.0]")
        check_axes(self.sample, self.sweep)
        for sigma_rel in self.sweep.sigma_rels:
            self._check_snapshot("sweep.ema", f"{sigma_rel:g}")
        return self

    @model_validator(mode="after")
    def _low_res_is_possible(self) -> Self:
        (field, levels), most = self._axis("cond_noise"), self.model.cond_noise
        if max(levels) > most:
            raise ValueError(f"{field} {max(levels):g} is more than model.cond_noise, {most:g}: lower it")
        if self.sample.base is not None and self.model.low_res is None:
            raise ValueError("sample.base makes images to enlarge: set model.low_res, or leave it out")
        if self.sample.runner == "ray" and self.model.low_res is not None and self.sample.base is None:
            raise ValueError("sample.runner ray has no held-out images to enlarge: use local, or sample.base")
        return self

    @model_validator(mode="after")
    def _guidance_is_possible(self) -> Self:
        guidance, rules, guides = (self._axis(name) for name in ("guidance", "guidance_rule", "guide"))
        for named, guide in product(rules[1], guides[1]) if any(guidance[1]) else ():
            name = named or implied_rule(guide)
            rule = GUIDANCE_RULES[name]
            if rule.needs_null and not self.train.p_uncond:
                raise ValueError(f"{guidance[0]} > 0 needs a model trained with p_uncond > 0, or a guide")
            if rule.needs_guide and guide is None:
                raise ValueError(f"{rules[0]} {name} needs a guide in every cell: set {guides[0]}")
            if rule.needs_guide and (profile := ema_guide(guide)) is not None:
                self._check_snapshot(guides[0], guide, profile.step)
        return self

    def _check_snapshot(self, field: str, profile: str, step: int | None = None) -> None:
        """Raise ValueError unless the training keeps the snapshots that a profile is made from."""
        if self.train.ema_profiles is None:
            raise ValueError(
                f"{field}: {profile} is made from snapshots: set train.ema_profiles to keep some"
            )
        if step is not None and step not in self.train.snapshot_steps():
            kept = f"train.ema_profiles keeps one every {self.train.ema_profiles.every} steps, and the last"
            raise ValueError(f"{field}: {profile} is no snapshot: {kept}")

    def _axis(self, name: str) -> tuple[str, tuple[Any, ...]]:
        return axis_values(name, dict(self.sample), dict(self.sweep))


def parse(values: Any, origin: str) -> Config:
    """Return the Config of nested plain values; UsageError names `origin`, the field and what is allowed."""
    return validate(Config, values, origin)


def load(path: Path | str = PARAMS) -> Config:
    """Read and validate a params file; UsageError for a missing, unreadable or impossible one."""
    values = read_params(path)
    if not values.keys() & Config.model_fields.keys():
        raise UsageError(
            f"{path} is no params file: it has none of the sections {', '.join(Config.model_fields)}"
        )
    return parse(values, str(path))
