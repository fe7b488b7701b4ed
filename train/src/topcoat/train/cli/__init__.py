"""Command lines of the trainer: parse first, import torch afterwards."""
