"""Guides in the engine: requests with and without them share passes, and match separate runs."""

from contextlib import closing

import pytest
import torch

from diffusion.engine.engine import Engine
from diffusion.engine.job import Job
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.guides import Guides
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.errors import UsageError
from tests.helpers.networks import artefact_of, loaded_classifier, network_of, spec_of

CPU = torch.device("cpu")
FREE = {"num_classes": 0, "null_class": False}
REQUESTS = [
    {"guidance": 1.0, "guide": "early"},
    {"guidance": 2.0, "guide": "early", "guidance_interval": (0.3, 3.0), "sampler": "dpm-solver++"},
    {"classifier": "c", "classifier_scale": 3.0},
    {"classifier": "c", "eta": 1.0},
    {"eta": 1.0},
]
CONDITIONAL = [{"guidance": 1.5}, {"guidance": 1.0, "guide": "early", "classifier": "c"}]


def model_of(seed: int, **changes: object) -> LoadedModel:
    spec = spec_of(**changes)
    return LoadedModel(network_of(spec, seed), artefact_of(spec))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [{}, FREE], ids=["conditional", "unconditional"])
@pytest.mark.parametrize("rows", [5, 64])
def test_requests_with_different_guides_share_passes_and_match_separate_runs(classes, rows):
    model, guides = model_of(0, **classes), Guides(model_of(1, **classes), loaded_classifier())
    jobs: list[Job] = []
    with closing(Engine(model, CPU, rows=rows, guides=guides)) as engine:
        for number, values in enumerate(REQUESTS if classes else [*REQUESTS, *CONDITIONAL]):
            settings = SampleSettings(steps=4, seed=number, **values)
            labelled = guides.labelled(model) if settings.has_classifier else model.artefact
            jobs.append(engine.add(settings, range(3), mixed_condition(labelled, settings, range(3))))
        total = 0
        while engine.jobs:
            made = engine.step()
            assert made.rows <= rows
            total += made.rows
    assert total == sum(len(job) * job.nfe for job in jobs)
    for job in jobs:
        assert job.error is None
        assert job.images is not None
        assert job.nfe == count_nfe(job.settings, model.artefact.process)
        alone = generate(model, job.settings, job.indices, job.condition, CPU, guides=guides)
        assert int((job.images.int() - alone.int()).abs().max()) <= 1


@pytest.mark.parametrize("values", [{"guidance": 1.0, "guide": "early"}, {"classifier": "c"}])
def test_a_request_for_a_missing_guide_is_refused(values):
    model, settings = model_of(0), SampleSettings(steps=2, **values)
    with closing(Engine(model, CPU)) as engine, pytest.raises(UsageError, match="needs the"):
        engine.add(settings, range(1), mixed_condition(model.artefact, settings, range(1)))
