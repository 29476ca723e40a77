"""Editors: transformations of gradients into edits."""
