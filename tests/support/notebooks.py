"""Notebooks made of a few cells."""

import json


def notebook(path, parameters, *cells):
    def cell(source, tags=()):
        return {
            "cell_type": "code",
            "id": str(abs(hash(source)))[:8],
            "metadata": {"tags": list(tags)},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }

    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    content = {
        "cells": [cell(parameters, ["parameters"]), *map(cell, cells)],
        "metadata": kernel,
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(content))
    return path
