"""The stages of `diffctl run`: those of the pipeline, and those that the user has added to dvc.yaml."""

from diffusion.layout import GRAPH, dvc_stages
from flows.stage_code import STAGES


def pipeline_stages() -> list[str]:
    """Return the stages to run, each after those that it depends on, without `code`.

    Added stages are those of the root's dvc.yaml, and what they or the pipeline depend on in others. If DVC
    cannot read them they are left out: the first stage to run reports its error.
    """
    if dvc_stages().keys() <= {*STAGES, "code"}:
        return list(STAGES)  # DVC's graph takes a second
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage
    from networkx import dfs_postorder_nodes

    try:
        with Repo(".") as repo:
            graph = repo.index.graph
    except DvcException:
        return list(STAGES)
    stages = {stage.addressing: stage for stage in graph if isinstance(stage, PipelineStage)}
    ours = [name for name, stage in stages.items() if stage.path_in_repo == str(GRAPH)]
    ordered = {
        before.addressing: None
        for name in (*STAGES, *ours)
        if name in stages
        for before in dfs_postorder_nodes(graph, stages[name])
        if before.addressing in stages
    }
    return [name for name in (ordered | dict.fromkeys(STAGES)) if name != "code"]
