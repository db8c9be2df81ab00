"""`python -m benchmarks`: run every benchmark, one after the other."""

import importlib
import pkgutil

import benchmarks

for module in pkgutil.iter_modules(benchmarks.__path__):
    loaded = None if module.name == "__main__" else importlib.import_module(f"benchmarks.{module.name}")
    if hasattr(loaded, "main"):
        print(f"\n== {module.name}", flush=True)
        loaded.main()
