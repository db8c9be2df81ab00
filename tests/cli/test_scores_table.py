"""What `diffctl run` shows of a sweep's scores."""

from cli.commands.run import show_scores
from tests.helpers.scores_document import document, with_space


def test_every_feature_space_has_its_columns(capsys):
    show_scores(with_space(document({(5, 0.0): 0.4, (10, 0.0): 0.3})))
    heading, first, second, said, *_ = capsys.readouterr().out.splitlines()
    ours = ["fd_effnet_lite0_64", "excess", "kd_effnet_lite0_64"]
    assert heading.split() == ["STEPS", "ETA", *ours, "fd_effnet_lite0_96", "kd_effnet_lite0_96"]
    assert first.split() == ["5", "0", "400", "375", "0.4", "800", "0.8"]
    assert second.split() == ["10", "0", "300", "275", "0.3", "600", "0.6", "*"]
    assert "extractor effnet-lite0-64, effnet-lite0-96; * the best by kd_effnet_lite0_64" in said


def test_a_single_space_is_shown_alone(capsys):
    show_scores(document({(10, 0.0): 0.3}))
    out = capsys.readouterr().out
    assert "96" not in out
    assert "extractor effnet-lite0-64; *" in out
