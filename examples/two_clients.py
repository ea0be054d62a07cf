"""FedNano's parts by hand: two clients and a host in one process, without Flower.

python examples/two_clients.py
"""

import fednano_flwr as fednano

ROUNDS = 2


def main() -> None:
    """Train and merge, and print the accuracy after each round; round 0 is the frozen model."""
    config = fednano.default_config({"dataset.alpha": 1.0, "local-epochs": 1})
    clients = [fednano.Client(config, fednano.ClientSpec(partition, 2)) for partition in range(2)]
    work = fednano.LocalWork(fisher="running")  # Fisher values from training's own gradients
    theta = fednano.adapter_state(clients[0].edge.adapters)
    with fednano.load_host(config.model.name, config.llm) as host:
        for number in range(ROUNDS + 1):
            if number > 0:
                updates = [client.train(theta, host, number, work) for client in clients]
                theta = merged(updates)
            results = [client.evaluate(theta, host, number, work) for client in clients]
            shares = [result.score / result.num_examples for result in results]
            print(f"round {number}:", ", ".join(f"{share:.1%}" for share in shares))


def merged(updates):
    """Each parameter's mean, weighted by how sure each client is of it."""
    samples = [update.num_examples for update in updates]
    thetas = {name: [update.theta[name] for update in updates] for name in updates[0].theta}
    fishers = {name: [update.fisher[name] for update in updates] for name in updates[0].theta}
    return {n: fednano.fisher_merge(thetas[n], fishers[n], samples, floor=1e-6) for n in thetas}


if __name__ == "__main__":
    main()
