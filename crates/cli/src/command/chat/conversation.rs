//! What was said so far, and the prompt that it makes. Pure: no terminal, no engine.

use anyhow::Result;
use mintage_model::{ChatOptions, TextModel, TokenId};
use serde_json::{Value, json};

/// Tokens of the context that are kept for an answer.
const ANSWER_TOKENS_MIN: usize = 256;

/// Messages in the order they were said.
pub(super) struct Conversation {
    system: Option<String>,
    /// User and assistant by turns, the user first.
    turns: Vec<Value>,
}

impl Conversation {
    pub(super) fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// The user's next message.
    pub(super) fn say(&mut self, text: String) {
        self.turns.push(json!({"role": "user", "content": text}));
    }

    /// The answer to it, even if it was stopped: what was read stays said.
    pub(super) fn answered(&mut self, text: String) {
        self.turns.push(json!({"role": "assistant", "content": text}));
    }

    /// Forgets everything but the system prompt.
    pub(super) fn clear(&mut self) {
        self.turns.clear();
    }

    /// Makes the last message unanswered; `false` where there is none.
    pub(super) fn take_back_answer(&mut self) -> bool {
        if self.turns.len().is_multiple_of(2) {
            self.turns.pop();
        }
        !self.turns.is_empty()
    }

    /// Forgets a message that could not be answered.
    pub(super) fn take_back_message(&mut self) {
        if !self.turns.len().is_multiple_of(2) {
            self.turns.pop();
        }
    }

    /// The prompt for the next answer. Where it leaves no room in the context, the oldest turns are forgotten for
    /// good; also returns how many messages.
    pub(super) fn prompt(
        &mut self,
        text: &TextModel,
        context_tokens: u32,
    ) -> Result<(Vec<TokenId>, usize)> {
        let room = (context_tokens as usize).saturating_sub(ANSWER_TOKENS_MIN).max(1);
        let mut forgotten = 0;
        loop {
            let tokens = text.encode_chat(&self.messages(), None, &ChatOptions::default())?;
            if tokens.len() <= room || self.turns.len() <= 1 {
                return Ok((tokens, forgotten));
            }
            // A question goes with its answer.
            self.turns.drain(..2);
            forgotten += 2;
        }
    }

    fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain(self.turns.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_order_and_can_be_taken_back() {
        let mut conversation = Conversation::new(Some("s".to_owned()));
        let roles = |conversation: &Conversation| -> Vec<String> {
            let messages = conversation.messages();
            messages
                .iter()
                .map(|m| {
                    format!("{}:{}", m["role"].as_str().unwrap(), m["content"].as_str().unwrap())
                })
                .collect()
        };
        assert!(!conversation.take_back_answer());
        conversation.say("a".to_owned());
        conversation.answered("b".to_owned());
        conversation.say("c".to_owned());
        assert_eq!(roles(&conversation), ["system:s", "user:a", "assistant:b", "user:c"]);
        conversation.take_back_message();
        assert!(conversation.take_back_answer());
        assert_eq!(roles(&conversation), ["system:s", "user:a"]);
        conversation.clear();
        conversation.take_back_message();
        assert_eq!(roles(&conversation), ["system:s"]);
    }
}
