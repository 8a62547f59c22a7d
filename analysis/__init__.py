"""Fit learning-rate laws with intervals, recommend a rate, report. Imports no torch."""
