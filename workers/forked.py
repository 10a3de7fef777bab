"""Imported last by the server that job processes are forked from: what each of them would otherwise work out anew.

No thread may start here, since threads do not survive a fork.
"""

import pipelines.load  # noqa: F401
import workers.dashboard  # noqa: F401
from pipelines.execute import versions
from pipelines.jobs import KINDS, job_model
from workers.clusters import Address

versions()
for _kind in KINDS:
    job_model(_kind).model_rebuild()
Address.model_rebuild()
