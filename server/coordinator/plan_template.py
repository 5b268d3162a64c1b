"""The plan that `fedmslora coordinator init` leaves to be edited."""

from common.rules.registry import expected_names


def plan_template() -> str:
    """Return the text of a plan of one stage, with a comment on every field."""
    return _TEMPLATE.replace("RULES", expected_names().replace("'", ""))


_TEMPLATE = """\
# What the federation will do, stage by stage. It travels to every site, so it holds no path
# and no hospital's name: sites are the pseudonyms under which they were enrolled.
# Once a run of it has begun it does not change; a new plan has a new name.
name: first
# Any whole number: equal plans, data and seeds give equal adapters.
seed: 7

# The frozen model that everything is added to. Every site must have the same, and
# `fedmslora site check --plan` compares its files with this digest.
base_model:
  name: tiny-llava
  sha256: "f63bf5251d981d9079b940006b0a9ecc07db5f294b35f30664a64239cf443ac4"

method:
  name: mslora_cr
  rank: 8
  alpha: 8
  # Which earlier adapters are summed under the one that trains: all, same_modality or none.
  active: all
  # The paper's regularizer is {similarity: exp, weight: 0.1, orthogonality: 0.01}; in our
  # experiments none gained anything (docs/results.md).
  contrast: null

# How a round's updates become one adapter: RULES.
aggregation: svd
# The number format in which adapters travel and are released.
wire: bf16

stages:
  - name: stain
    modality: pathology
    # The folder of the task in each site's data.
    task: stain
    sites: [north, south]
    rounds: 3
    local_epochs: 3
    learning_rate: 5e-3
    batch_size: 16
    max_new_tokens: 8
    # Fewest sites whose update makes a round; without it, all of them.
    quorum: 1
    # After so long a round goes on without the sites that have not answered.
    deadline_hours: 72.0
"""
