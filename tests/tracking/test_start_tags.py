"""MLflow's tags of what a training started from."""

from diffusion.images.meta import Ancestor
from tracking.names import start_tags


def test_the_nearest_by_its_fields_and_all_in_order() -> None:
    near = Ancestor(sha256="a" * 64, data="clothes", digest="b" * 64, step=2800)
    far = Ancestor(sha256="c" * 64, data="photos", digest="d" * 64, step=7)
    assert start_tags((near, far)) == {
        "diffctl.start": "a" * 64,
        "diffctl.start.data": "clothes",
        "diffctl.start.data_digest": "b" * 64,
        "diffctl.start.step": "2800",
        "diffctl.lineage": f"{'a' * 16} {'c' * 16}",
    }
    assert start_tags(()) == {}
