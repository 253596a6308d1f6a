"""Texts and models: from the Hub, from files, or from installed packages."""
