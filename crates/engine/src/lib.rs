//! The CPU engine: forward, scheduler, paged KV, prefix tree, sampler. It knows tokens, never text, money or HTTP.
