"""The loop of amortis on one page: sample, score, train. The order of the file is the order of execution.

    .venv/bin/python docs/minimal.py        # after `make setup`; another seed: docs/minimal.py 1

SmolLM2-135M-Instruct becomes a sampler of integers drawn uniformly from 0 to 100, the task `rng`, whose exact posterior
is known. Losses, masks, task and reward are those of amortis. It takes 158 s of one core's time, the base
model's loading included; the total variation to the exact posterior falls from 0.686 to 0.025 with seed 0.

It is not amortis: there is no vLLM, no Ray and no Redis, sampling waits for training and training for sampling, and
there is one prompt, no checkpoint and no evaluation but the last line. `amortis train` is the product of this page.

Names end in what their axes are: B trajectories of a batch, A allowed tokens, T actions, S decision states (T + 1).
"""

import sys
import time

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from common.config import LoraSection
from common.default_model import ensure_default_model
from common.reward import log_reward
from common.tasks.rng import RngConfig, RngTask
from common.tokens import load_codec
from learner.losses import subtb_loss
from learner.policy import Actions, LoraPolicy

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 0
STEPS, DRAWN, LEARNING_RATE = 110, 24, 4e-3

torch.manual_seed(SEED)
rng = np.random.default_rng(SEED)
started = time.monotonic()

# The problem: a prompt X, the tokens that the policy may write, and log R. The policy: the base model with a LoRA
# adapter, restricted to those tokens; a fresh adapter changes nothing. The reference p is the model without it.
model_path = str(ensure_default_model())
task = RngTask(RngConfig(), load_codec(model_path))
query, space, weights = task.queries("train")[0], task.action_space, task.default_weights
policy = LoraPolicy.load(model_path, LoraSection(), space, dtype="float32", device=torch.device("cpu"))
optimizer = torch.optim.AdamW(policy.trainable().values(), lr=LEARNING_RATE, weight_decay=0.0)

prompt_1P = torch.as_tensor(query.prompt_ids.copy(), dtype=torch.long)[None]
allowed_A = torch.as_tensor(space.allowed_array)
scored: dict[tuple[int, ...], np.ndarray] = {}  # Z -> log R at each of its states: the whole replay buffer

before = task.evaluate_policy(policy)
print(f"step   0: total variation to the exact posterior {before['total_variation']:.3f}")

for step in range(1, STEPS + 1):
    # 1. Sample Z ~ q(·|X) token by token. The mask is asked at each state: what may follow, and whether Z may end.
    drawn: list[list[int]] = [[] for _ in range(DRAWN)]
    going = list(range(DRAWN))
    with torch.no_grad():
        output = policy.model(prompt_1P, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        cache.batch_repeat_interleave(DRAWN)
        logits_BA = output.logits[:, -1, allowed_A].expand(DRAWN, -1)
        while going:
            mask_BA = torch.as_tensor(np.stack([space.mask(ids) for ids in drawn]))
            q_BA = logits_BA.masked_fill(~mask_BA, -torch.inf).softmax(-1)
            next_B = allowed_A[torch.multinomial(q_BA, 1)[:, 0]]
            going = [i for i in going if next_B[i] != space.terminator_id]
            for i in going:
                drawn[i].append(int(next_B[i]))
            if all(len(drawn[i]) == space.max_len for i in going):
                break  # nothing but ⊤ is left to them
            # Rows that have ended go along, and what they write is not looked at.
            output = policy.model(next_B[:, None], past_key_values=cache, use_cache=True)
            logits_BA = output.logits[:, -1, allowed_A]

    # 2. Score: log R at every decision state, the reward of stopping there. The base model's part, log p(z₁…z_t ⊤|X),
    #    has weight 0 in this task, whose reward is its constraint alone; in most tasks it is the reward.
    new = sorted({tuple(ids) for ids in drawn} - scored.keys())
    if new:
        # Padding stands behind the text, where nothing of the text reads it.
        new_NT = pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in new], batch_first=True)
        with torch.no_grad(), policy.model.disable_adapter():
            text_NL = torch.cat([prompt_1P.expand(len(new), -1), new_NT], 1)
            log_p_NSV = policy.model(text_NL, logits_to_keep=new_NT.shape[1] + 1).logits.log_softmax(-1)
        for ids, log_p_SV in zip(new, log_p_NSV):
            log_p_T = log_p_SV[torch.arange(len(ids)), torch.tensor(ids, dtype=torch.long)]
            to_state_S = torch.nn.functional.pad(log_p_T.cumsum(0), (1, 0))
            components = {
                "log_prior": (to_state_S + log_p_SV[: len(ids) + 1, space.terminator_id]).numpy(),
                "log_likelihood": np.zeros(len(ids) + 1, np.float32),  # there is no Y
                "log_constraint": task.log_constraint(query, np.array(ids, np.int32)),
            }
            scored[ids] = log_reward(components, weights)

    # 3. Train on what was drawn, and on some of all that was ever scored: the loss is 0 at the posterior, whoever drew.
    #    They get more as the learning rate falls, so that the last steps are the least noisy ones.
    known = list(scored)
    batch = [tuple(ids) for ids in drawn] + [known[i] for i in rng.permutation(len(known))[:step]]
    log_q = policy.log_probs([Actions.plain(query, ids) for ids in batch])
    log_reward_BS = torch.zeros(log_q.log_pterm.shape)
    for row, ids in zip(log_reward_BS, batch):
        row[: len(ids) + 1] = torch.as_tensor(scored[ids])
    loss = subtb_loss(log_q.log_pf, log_q.log_pterm, log_reward_BS, log_q.n_actions, can_stop=log_q.can_stop)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * (1 - (step - 1) / STEPS)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.trainable().values(), 1.0)
    optimizer.step()
    if step % 10 == 0:
        seconds = time.monotonic() - started
        print(f"step {step:3d}: loss {loss.item():8.3f}, {len(scored)} texts scored, {seconds:.0f} s", flush=True)

after = task.evaluate_policy(policy)
print(f"total variation to the exact posterior: {before['total_variation']:.3f} -> {after['total_variation']:.3f}")
