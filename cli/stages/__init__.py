"""The bodies of stages. `from cli.stages import module` delays its loading until it is used."""
