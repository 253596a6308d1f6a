"""Whole jobs, as the scripts do them: fine-tune, prune, recover, measure, save, publish.

Two registries keep them open. A task (`hfprune.jobs.tasks`) says which data a model is trained and measured on, a
method (`hfprune.jobs.methods`) says when units are removed. A new task is one file in `hfprune/jobs/tasks/`.
"""
