"""The schemas that the streams' frames name, as the worker has them from a registry."""

from __future__ import annotations

import base64
import json

from streamproc import framed
from tests.oracles.messages import PREDICTION_FILE
from tests.oracles.records import AVRO, AVRO_ID, JSON_ID, PROTOBUF_ID

CODECS = {
    AVRO_ID: framed.codec("AVRO", json.dumps(AVRO)),
    PROTOBUF_ID: framed.codec("PROTOBUF", base64.b64encode(PREDICTION_FILE.SerializeToString()).decode()),
    JSON_ID: framed.codec("JSON", "{}"),
}
