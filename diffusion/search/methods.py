"""How a search chooses: the point of a trial as a function of the seed, its number and the trials before it.

Nothing goes on from trial to trial but what the ledger holds, so a search that was killed chooses as one that
was not.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from diffusion.search.config import Range, SearchConfig
from diffusion.search.space import Point, grid, values_of
from diffusion.search.trial import Trial
from diffusion.system.section import canonical_json

if TYPE_CHECKING:
    import numpy as np
    from optuna.distributions import BaseDistribution

Method = Callable[[SearchConfig, int, Sequence[Trial]], Point]


def every_combination(section: SearchConfig, number: int, before: Sequence[Trial]) -> Point:
    """The grid's point of that number."""
    return grid(section)[number]


def at_random(section: SearchConfig, number: int, before: Sequence[Trial]) -> Point:
    """A point drawn by (seed, number)."""
    import numpy as np

    source = np.random.default_rng([section.seed, number])
    return {name: _drawn(values, source) for name, values in values_of(section)}


def by_parzen_estimators(section: SearchConfig, number: int, before: Sequence[Trial]) -> Point:
    """What Optuna's TPE, seeded by (seed, number), would try after the trials before.

    Those that still run count as bad ones, so that trials beside each other are not tried at one place (the
    constant liar of Ginsbourger et al. 2010, with the lie that keeps away).
    """
    import numpy as np
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int(np.random.SeedSequence([section.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the liar is called experimental
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    for trial in before:
        if (told := optuna_trial(section, trial)) is not None:
            study.add_trial(told)
    asked = study.ask(distributions(section))
    return {name: value_of(section.fields[name], asked.params[name]) for name, _ in values_of(section)}


METHODS: dict[str, Method] = {
    "grid": every_combination,
    "random": at_random,
    "tpe": by_parzen_estimators,
}


def _drawn(values: Range | tuple[Any, ...], source: "np.random.Generator") -> Any:
    if not isinstance(values, Range):
        return values[int(source.integers(len(values)))]
    if values.whole and not values.log:
        return int(source.integers(int(values.low), int(values.high), endpoint=True))
    if values.whole:  # as wide a part of the logarithm for each as Optuna gives it
        low, high = math.log(values.low - 0.5), math.log(values.high + 0.5)
        return min(max(round(math.exp(source.uniform(low, high))), values.low), values.high)
    low, high = (math.log(values.low), math.log(values.high)) if values.log else (values.low, values.high)
    drawn = float(source.uniform(low, high))
    return min(max(math.exp(drawn) if values.log else drawn, values.low), values.high)


def distributions(section: SearchConfig) -> "dict[str, BaseDistribution]":
    """The fields as Optuna knows them; listed values as their JSON, since they may be lists themselves."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, values in values_of(section):
        if not isinstance(values, Range):
            found[name] = CategoricalDistribution(tuple(map(canonical_json, values)))
        elif values.whole:
            found[name] = IntDistribution(int(values.low), int(values.high), log=values.log)
        else:
            found[name] = FloatDistribution(values.low, values.high, log=values.log)
    return found


def params_of(section: SearchConfig, point: Point) -> dict[str, Any]:
    """A point as Optuna knows it."""
    return {
        name: point[name] if isinstance(values, Range) else canonical_json(point[name])
        for name, values in values_of(section)
    }


def value_of(values: Range | tuple[Any, ...], param: Any) -> Any:
    """A field's value from what Optuna knows it as."""
    if isinstance(values, Range):
        return param
    return next(value for value in values if canonical_json(value) == param)


def optuna_trial(section: SearchConfig, trial: Trial) -> Any:
    """A trial as Optuna's; None of one that failed, which told nothing."""
    from optuna.trial import TrialState, create_trial

    if trial.state == "failed":
        return None
    states = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "running": TrialState.RUNNING}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it thinks of values that are no numbers
        return create_trial(
            state=states[trial.state],
            value=trial.value,
            params=params_of(section, trial.point),
            distributions=distributions(section),
            intermediate_values=dict(trial.reports),
        )
