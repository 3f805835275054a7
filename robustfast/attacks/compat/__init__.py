"""Drop-in adapters: the calls of other libraries' scripts, answered by the attacks of this one.

Change the import, keep the script:

* `torchattacks`: ``from robustfast.attacks.compat import torchattacks``
* `foolbox`: ``from robustfast.attacks.compat import foolbox as fb``
* `autoattack`: ``from robustfast.attacks.compat.autoattack import AutoAttack``
* `cleverhans`, `advertorch`: their functions and classes, by name
* `fast_adversarial`, `robust_overfitting`: ``attack_pgd``; `trades`: ``trades_loss``
* `robustbench`: ``benchmark``

docs/drop-in.md says, library by library, what is the same and what differs on purpose.
"""
