"""A model type that transformers does not know, with names of its own: what a user's file looks like."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, vocab_size=64, width=32, depth=2, lanes=8, shared=4, per_lane=4, wide=40, **kwargs):
        self.vocab_size, self.width, self.depth, self.wide = vocab_size, width, depth, wide
        self.lanes, self.shared, self.per_lane = lanes, shared, per_lane
        self.lane_scale = per_lane**-0.5  # made here, so a config that skips this constructor fails
        super().__init__(**kwargs)


class Mixer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.lanes, self.shared, self.per_lane = config.lanes, config.shared, config.per_lane
        self.scale = config.lane_scale
        self.Wq = nn.Linear(config.width, config.lanes * config.per_lane)
        self.Wkeys = nn.Linear(config.width, config.shared * config.per_lane, bias=False)
        self.to_values = nn.Linear(config.width, config.shared * config.per_lane)
        self.back = nn.Linear(config.lanes * config.per_lane, config.width)

    def forward(self, x, mask):
        batch, length, _ = x.shape
        q = self.Wq(x).view(batch, length, self.lanes, self.per_lane).transpose(1, 2)
        k = self.Wkeys(x).view(batch, length, self.shared, self.per_lane).transpose(1, 2)
        v = self.to_values(x).view(batch, length, self.shared, self.per_lane).transpose(1, 2)
        k, v = (t.repeat_interleave(self.lanes // self.shared, 1) for t in (k, v))
        weights = (q @ k.transpose(-1, -2) * self.scale).masked_fill(~mask[:, None, None, :], -1e9).softmax(-1)
        return self.back((weights @ v).transpose(1, 2).reshape(batch, length, self.lanes * self.per_lane))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mixer = Mixer(config)
        self.first, self.second = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.open, self.signal = nn.Linear(config.width, config.wide), nn.Linear(config.width, config.wide)
        self.close = nn.Linear(config.wide, config.width)

    def forward(self, hidden_states, mask):
        x = hidden_states + self.mixer(self.first(hidden_states), mask)
        y = self.second(x)
        return x + self.close(torch.sigmoid(self.open(y)) * self.signal(y))


class OwnPreTrainedModel(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "trunk"
    layer_class = Layer

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.2)


class OwnModel(OwnPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.pile = nn.ModuleList([self.layer_class(config) for _ in range(config.depth)])
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.words(input_ids)
        for layer in self.pile:
            x = layer(x, mask.bool())
        return BaseModelOutput(last_hidden_state=x)


class OwnForSequenceClassification(OwnPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.trunk = OwnModel(config)
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.classifier(self.trunk(input_ids, attention_mask).last_hidden_state.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register("own", OwnConfig)
AutoModel.register(OwnConfig, OwnModel)
AutoModelForSequenceClassification.register(OwnConfig, OwnForSequenceClassification)
