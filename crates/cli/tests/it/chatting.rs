//! `mintage chat` where no terminal is: one prompt, one answer.

use std::io::Write as _;
use std::process::Stdio;

use crate::{Home, finished, small_model};

#[test]
fn one_prompt_gets_one_answer_from_arguments_or_standard_input() {
    let Some(model) = small_model() else { return };
    let (home, model) = (Home::new(), model.display().to_string());
    let prompt = "What is the capital of France? Answer with its name only.";
    let options = ["--temperature", "0", "--max-tokens", "16"];
    let arguments = [&["chat", &model, "--prompt", prompt][..], &options].concat();
    let (status, answer, err) = home.run(&arguments);
    assert_eq!(status, 0, "{err}");
    assert!(answer.contains("Paris"), "{answer}");

    let arguments = [&["chat", &model][..], &options].concat();
    let mut child = home
        .mintage(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(prompt.as_bytes()).unwrap();
    let (status, piped, err) = finished(&child.wait_with_output().unwrap());
    assert_eq!((status, piped), (0, answer), "{err}");
}
