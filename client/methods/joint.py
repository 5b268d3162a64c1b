"""Joint training: one LoRA on the questions of every task at once. Meant as an upper bound.

A stage makes as many optimizer steps as its own questions ask for, but its questions are a
part of one long random permutation of all that the site's stages would ask
(client/training/loop.py). After the last stage each question has come as often as in a stage
of its own, under one schedule of the learning rate; only, no task came before another.
"""

from client.methods.sequential import answer, start, train

__all__ = ["answer", "start", "train"]
