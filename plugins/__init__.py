"""The project's own entries: data sets, networks, processes, samplers and more (docs/extending.md).

Add them to the registries here, such as `SAMPLERS["mine"] = SamplerEntry("plugins.sample.mine:build")`. Write
their code in the folder of the section of params.yaml that selects them. Import only torch-free modules here:
every command imports this file.
"""
