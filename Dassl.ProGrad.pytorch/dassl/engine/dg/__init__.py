"""Trainers of domain generalisation: labelled source domains (DATASET.SOURCE_DOMAINS), tested on others."""

from .vanilla import Vanilla

__all__ = ["Vanilla"]
