"""Hydra configuration, composed as pkg://hyperp.conf."""
