"""A stand-in for Google Cloud Storage, in memory, with one bucket `runs`; prints its port and serves until killed.

The emulator lacks generations, by which TensorStore sees that what it read is what it replaces; they are added here.
"""

import signal
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

download, insert = objects.download, objects.insert


def generation(storage: Any, bucket: str, name: str) -> str:
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def download_with_generation(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
    download(request, response, storage, *args, **kwargs)
    response["x-goog-generation"] = generation(storage, request.params["bucket_name"], request.params["object_id"])


def insert_if_unchanged(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
    expected, name = request.query.get("ifGenerationMatch"), request.query.get("name")
    if expected and name and generation(storage, request.params["bucket_name"], name[0]) != expected[0]:
        response.status = HTTPStatus.PRECONDITION_FAILED
        return
    insert(request, response, storage, *args, **kwargs)


objects.download, objects.insert = download_with_generation, insert_if_unchanged

if __name__ == "__main__":
    from gcp_storage_emulator.server import create_server  # which takes the functions above

    server = create_server("localhost", 0, in_memory=True, default_bucket="runs")
    server.start()
    print(server._api._httpd.server_address[1], flush=True)
    signal.pause()
