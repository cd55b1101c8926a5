"""Faults: processes killed, stopped or starved at random moments, and whether the next run is none the wiser."""
