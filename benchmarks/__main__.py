"""`python -m benchmarks`: every benchmark but for the very long ones, one after the other."""

import importlib
import pkgutil

import benchmarks

for module in pkgutil.iter_modules(benchmarks.__path__):
    loaded = None if module.name == "__main__" else importlib.import_module(f"benchmarks.{module.name}")
    if loaded and hasattr(loaded, "main") and not getattr(loaded, "LONG", False):
        print(f"\n== {module.name}", flush=True)
        loaded.main()
