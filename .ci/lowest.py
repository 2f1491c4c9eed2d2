"""Prints the lowest versions that pyproject.toml allows, as arguments for pip."""

import tomllib

with open("pyproject.toml", "rb") as file:
    dependencies = tomllib.load(file)["project"]["dependencies"]
print(*(dependency.replace(">=", "==") for dependency in dependencies))
