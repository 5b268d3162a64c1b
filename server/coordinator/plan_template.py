"""The plan that `fedmslora coordinator init` writes as a template."""

from common.rules.registry import expected_names


def plan_template() -> str:
    """Return the text of a plan of one stage, with a comment on every field."""
    return _TEMPLATE.replace("RULES", expected_names().replace("'", ""))


_TEMPLATE = """\
# What the federation will do, stage by stage. The plan is sent to every site, so it has no paths
# and no hospitals' names: sites are the pseudonyms under which they were enrolled.
# Once its run has begun, a plan can't be changed; another plan needs another name.
name: first
# Any whole number: equal plans, data and seeds give equal adapters.
seed: 7

# The frozen base model. Every site must have the same one; `fedmslora site check --plan`
# compares its files with this digest.
base_model:
  name: tiny-llava
  sha256: "f63bf5251d981d9079b940006b0a9ecc07db5f294b35f30664a64239cf443ac4"

method:
  name: mslora_cr
  rank: 8
  alpha: 8
  # Which earlier adapters are active while a stage trains, and in its answers: none, so that no
  # release depends on another, same_modality or all.
  active: none
  # The paper's regularizer is {similarity: exp, weight: 0.1, orthogonality: 0.01}; in our
  # experiments no regularizer improved the scores (docs/log.md).
  contrast: null

# How a round's updates become one adapter: RULES.
aggregation: svd
# The number format in which adapters travel and are released.
wire: bf16

stages:
  - name: stain
    modality: pathology
    # The task's folder in each site's data.
    task: stain
    sites: [north, south]
    rounds: 3
    local_epochs: 3
    learning_rate: 5e-3
    # Examples of an optimizer step at each site; with `batch: global` of all sites together.
    batch_size: 16
    max_new_tokens: 8
    # The fewest updates that complete a round; without this field, all sites are needed.
    quorum: 1
    # After so long a round ends without the sites that have not answered.
    deadline_hours: 72.0
"""
