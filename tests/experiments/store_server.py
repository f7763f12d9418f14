"""A stand-in for Google Cloud Storage, in memory, with one bucket `runs`; prints its port and serves until killed."""

import signal

from gcp_storage_emulator.server import create_server

if __name__ == "__main__":
    server = create_server("localhost", 0, in_memory=True, default_bucket="runs")
    server.start()
    print(server._api._httpd.server_address[1], flush=True)
    signal.pause()
