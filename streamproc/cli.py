import os
import sys

import structlog

from streamproc import rules
from streamproc.worker.run import run

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
sys.exit(run(rules.load(sys.argv[sys.argv.index("--config") + 1], env=os.environ)))
