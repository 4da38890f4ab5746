"""PageRank by power iteration.

The event has a graph as `{"edges": [[from, to], …]}`, or asks for one to be made with
`{"nodes": n, "degree": d, "seed": s}`. The answer has the nodes of the highest rank.
"""

DAMPING = 0.85
TOLERANCE = 1e-10
MOST_ROUNDS = 200


def handler(event, context):
    graph = read(event["edges"]) if "edges" in event else make(event)
    ranks, rounds = pagerank(graph)
    best = sorted(ranks, key=lambda node: (-ranks[node], node))[: event.get("top", 5)]
    return {
        "nodes": len(graph),
        "edges": sum(len(targets) for targets in graph.values()),
        "rounds": rounds,
        "sum": round(sum(ranks.values()), 6),
        "top": [[node, round(ranks[node], 6)] for node in best],
    }


def read(edges):
    graph = {}
    for source, target in edges:
        graph.setdefault(source, []).append(target)
        graph.setdefault(target, [])
    return graph


def make(event):
    """A graph that is the same everywhere: a linear congruential generator chooses the edges,
    low numbers more often."""
    state = event.get("seed", 1)
    nodes = event["nodes"]
    graph = {node: [] for node in range(nodes)}
    for node in graph:
        for _ in range(event["degree"]):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            share = (state >> 33) / 2**31
            graph[node].append(int(nodes * share * share))
    return graph


def pagerank(graph):
    count = len(graph)
    ranks = dict.fromkeys(graph, 1 / count)
    for rounds in range(1, MOST_ROUNDS + 1):
        # Nodes that lead nowhere give their rank to all.
        lost = sum(ranks[node] for node, targets in graph.items() if not targets)
        base = (1 - DAMPING + DAMPING * lost) / count
        next_ranks = dict.fromkeys(graph, base)
        for node, targets in graph.items():
            for target in targets:
                next_ranks[target] += DAMPING * ranks[node] / len(targets)
        change = sum(abs(next_ranks[node] - ranks[node]) for node in graph)
        ranks = next_ranks
        if change < TOLERANCE:
            break
    return ranks, rounds
