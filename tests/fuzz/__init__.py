"""Fuzzing of parsers of outside files: broken inputs, drawn by Hypothesis, read under the limits of `guard`.

A parser of `data_files`, `models` or `documents` may return or raise a DiffctlError. Any other exception, a
hang, unbounded memory and executed code fail. Inputs that once failed are in `corpus/PARSER/`.
"""
