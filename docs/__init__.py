"""The documentation: pages that are read on GitHub as they are; `docs.site` makes a site of them."""
