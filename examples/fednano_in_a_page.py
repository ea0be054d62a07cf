"""FedNano on one page: python examples/fednano_in_a_page.py
The LLM stays with the server. Clients have vision encoder, connector and token embeddings, frozen,
and NanoAdapters, which alone are trained and merged. The package only reads, deals and encodes."""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler
from transformers import AutoModelForImageTextToText

from fednano_flwr import ClientSpec, default_config
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.edge import process_cache as package


@torch.no_grad()
def embed(model, encoder, batch, answers):
    """The client's half: embeddings (N, d) of a batch laid end to end, which are pictures'."""
    ids = [torch.cat([q.ids, torch.tensor(a[:-1]).long()]) for q, a in zip(batch, answers)]
    hidden = model.get_input_embeddings()(torch.cat(ids))
    is_image = torch.cat(ids) == model.config.image_token_id
    pixels = [encoder.vision_inputs(q.sample)["pixel_values"] for q in batch if q.sample.pictures]
    features = [row for p in pixels for row in model.get_image_features(p).pooler_output]
    hidden[is_image] = torch.cat(features) if features else hidden[is_image]
    return hidden, is_image, [len(one) for one in ids]


def serve(model, embeddings, sizes, answers):
    """The server's half: the gradient (N, d) of the answers' mean loss; without any, the logits."""
    rows = [one.requires_grad_() for one in embeddings.split(sizes)]
    hidden = model.model.language_model(inputs_embeds=pad_sequence(rows, True)).last_hidden_state
    asked = [one[n - (len(a) or 1) : n] for one, n, a in zip(hidden, sizes, answers)]
    logits = model.lm_head(torch.cat(asked))
    if not any(answers):
        return logits
    labels = torch.tensor([token for answer in answers for token in answer])
    return torch.cat(torch.autograd.grad(nn.functional.cross_entropy(logits, labels), rows))


def fresh_adapters(width, config):
    """A and B for pictures, A and B for text; B is zero."""
    torch.manual_seed(derive_seed(Purpose.ADAPTERS, config.seed))
    for _ in range(2):
        a, b = nn.Linear(width, r := config.adapter.rank, False), nn.Linear(r, width, False)
        yield from (nn.init.kaiming_uniform_(a.weight, 5**0.5), nn.init.zeros_(b.weight))


def adapt(theta, scale, hidden, is_image):
    """h' = h + s·B(A h), on pictures and on text."""
    for a, b, where in ((*theta[:2], is_image), (*theta[2:], ~is_image)):
        if where.any():
            changed = hidden[where] + scale * (hidden[where] @ a.T) @ b.T
            hidden = hidden.index_copy(0, where.nonzero().squeeze(1), changed)
    return hidden


def train(halves, theta, scale, questions, config, seed):
    """Epochs of AdamW at a client, then its Fisher diagonal: the mean of squared gradients."""
    optimizer = torch.optim.AdamW(theta, config.learning_rate, weight_decay=config.weight_decay)
    order = torch.Generator().manual_seed(derive_seed(Purpose.ORDER, seed))
    squares, everyone = [torch.zeros_like(one) for one in theta], range(len(questions))
    for learns in (*[True] * config.local_epochs, False):
        drawn = torch.randperm(len(questions), generator=order).tolist() if learns else everyone
        for batch in (batches := list(BatchSampler(drawn, config.batch_size, False))):
            optimizer.zero_grad()
            answers = [questions[i].answer for i in batch]
            frozen, is_image, sizes = embed(*halves, [questions[i] for i in batch], answers)
            sent = adapt(theta, scale, frozen, is_image)  # goes up; its gradient comes down
            sent.backward(serve(halves[0], sent.detach(), sizes, answers))
            if not learns:
                squares = [s if t.grad is None else s + t.grad**2 for s, t in zip(squares, theta)]
                continue
            nn.utils.clip_grad_norm_(theta, config.max_grad_norm)
            optimizer.step()
    return [one.detach() for one in theta], [s / len(batches) for s in squares], len(questions)


def merge(thetas, fishers, counts, floor):
    """Σ_k p_k (F_k + ε) θ_k / Σ_k p_k (F_k + ε), ε a share of the mean Fisher value."""
    shares, merged = [count / sum(counts) for count in counts], []
    for theta, fisher in zip(zip(*thetas), zip(*fishers)):
        mean = sum(p * float(f.double().mean()) for p, f in zip(shares, fisher)) or 1.0
        certain = [(f.double() / mean + floor) * p for p, f in zip(shares, fisher)]
        merged.append((sum(c * t for c, t in zip(certain, theta)) / sum(certain)).float())
    return merged


@torch.no_grad()
def accuracy(halves, theta, scale, questions):
    """How often the right option's letter has the highest logit among the question's options."""
    right = 0
    for q in questions:
        frozen, is_image, sizes = embed(*halves, [q], [()])
        logits = serve(halves[0], adapt(theta, scale, frozen, is_image), sizes, [()])
        right += q.options[int(logits[0, list(q.options)].argmax())] == q.answer[0]
    return right / len(questions)


def federate(config, clients=2):
    """The rounds; returns A and B for pictures, A and B for text."""
    source, scale = package.source_of(config), config.adapter.alpha / config.adapter.rank
    model = AutoModelForImageTextToText.from_pretrained(package.checkpoint(source).folder)
    halves = model.eval().requires_grad_(False), package.encoder(source)
    shards = [
        package.client_data(config, source, ClientSpec(k, clients))[0] for k in range(clients)
    ]
    theta = list(fresh_adapters(model.config.text_config.hidden_size, config))
    for number in range(config.num_server_rounds + 1):
        updates = []
        for k, shard in enumerate(shards if number else []):
            own = [nn.Parameter(one.detach().clone()) for one in theta]
            seed = derive_seed(Purpose.TRAINING, config.seed, number, k)
            updates.append(train(halves, own, scale, shard.train, config, seed))
        theta = merge(*zip(*updates), config.strategy.fisher_floor) if updates else theta
        print(number, *(f"{accuracy(halves, theta, scale, shard.test):.1%}" for shard in shards))
    return theta


if __name__ == "__main__":
    federate(default_config({"num-server-rounds": 2, "dataset.alpha": 1.0}))
