"""Imported by processes that others are forked from: scoring's NLTK is loaded."""

from common.metrics import load_sentence_bleu

load_sentence_bleu()
