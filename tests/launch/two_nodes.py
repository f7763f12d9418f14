"""A Ray cluster of two nodes on this machine; prints its address. SIGUSR1 kills the second, SIGTERM ends both."""

import signal
import sys
import warnings

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False, "no_monitor": True}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    second = cluster.add_node(**node)
    cluster.wait_for_nodes()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    print(cluster.address, flush=True)
    while signal.sigwait({signal.SIGUSR1, signal.SIGTERM}) == signal.SIGUSR1:
        cluster.remove_node(second, allow_graceful=False)
        cluster.wait_for_nodes(60)  # until the head knows; a driver before that may look for the dead one
        print("killed", flush=True)
    cluster.shutdown()
    sys.exit(0)
