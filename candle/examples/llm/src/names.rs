//! Names of tensors: Hugging Face's, and what the models of this project's laboratory call the same.

/// (ours, Llama's) of a layer, without their prefixes.
const OF_LAYER: [(&str, &str); 9] = [
    ("n1", "input_layernorm"),
    ("wq", "self_attn.q_proj"),
    ("wk", "self_attn.k_proj"),
    ("wv", "self_attn.v_proj"),
    ("wo", "self_attn.o_proj"),
    ("n2", "post_attention_layernorm"),
    ("w1", "mlp.gate_proj"),
    ("w2", "mlp.down_proj"),
    ("w3", "mlp.up_proj"),
];

/// (ours, Llama's) of the whole model.
const OF_MODEL: [(&str, &str); 3] = [
    ("emb.weight", "model.embed_tokens.weight"),
    ("nf.weight", "model.norm.weight"),
    ("head.weight", "lm_head.weight"),
];

/// Llama's name of a tensor that has one of ours.
pub fn llama(name: &str) -> Option<String> {
    if let Some((_, llama)) = OF_MODEL.iter().find(|(ours, _)| *ours == name) {
        return Some((*llama).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let part = rest.strip_suffix(".weight")?;
    let (_, llama) = OF_LAYER.iter().find(|(ours, _)| *ours == part)?;
    Some(format!("model.layers.{layer}.{llama}.weight"))
}

#[cfg(test)]
mod tests {
    use super::llama;

    #[test]
    fn names_map_to_llamas() {
        assert_eq!(llama("emb.weight").unwrap(), "model.embed_tokens.weight");
        assert_eq!(
            llama("blocks.11.w3.weight").unwrap(),
            "model.layers.11.mlp.up_proj.weight"
        );
        assert_eq!(llama("blocks.x.w3.weight"), None);
        assert_eq!(llama("blocks.1.w4.weight"), None);
    }
}
