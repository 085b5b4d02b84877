"""Plain TRL as a Hydra application: ``python hydra_trl.py --multirun +jobs=jobs.json number=0,1,2``.

No line of rfflow is imported here. Hydra's own launcher trains the jobs one after the other in this process, joblib's
(``hydra/launcher=joblib``) in processes beside each other.
"""

import json

import hydra
from plain_trl import train


@hydra.main(version_base=None, config_path=None)
def main(cfg):
    with open(cfg.jobs) as file:
        train(json.load(file)[cfg.number])


if __name__ == "__main__":
    main()
