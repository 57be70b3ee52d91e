//! Serves `ScriptedEngine`, which repeats its prompt: for trying clients without a model.
//!
//! `cargo run -p mintage-server --example scripted -- MODEL.gguf` takes the text side of a model file, so that templates
//! and tokens are real; prints the address and a key.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mintage_ledger::{DirectoryStore, NewKey};
use mintage_model::{
    EngineInfo, GenerationDefaults, GrammarCompiler, GrammarLimits, ModelFile, Script,
    ScriptedEngine, TextModel,
};
use mintage_server::{Access, ServedModel, Server, ServerConfig};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("the path of a model file is missing")?;
    let file = ModelFile::open(Path::new(&path))?;
    let text = Arc::new(TextModel::from_model_file(&file)?);
    let vocab_size = u32::try_from(text.tokenizer().vocab_size())?;
    let info = EngineInfo { model: "scripted".to_owned(), context_length: 4096, vocab_size };
    let engine = ScriptedEngine::new(info, 64, |request| {
        // Only the words of the prompt, for as long as somebody listens.
        let words: Vec<u32> = request.prompt.iter().copied().filter(|id| *id < 100_000).collect();
        let tokens = words.into_iter().cycle().take(2000).collect();
        Ok(Script { tokens, token_delay: Duration::from_millis(2), ..Script::default() })
    });
    let folder = tempfile::tempdir()?;
    let keys = DirectoryStore::open(folder.path())?;
    let project = keys.ensure_tenant("example", 0)?;
    let key = keys.create_key(NewKey::of_project("example", &project.id), 0)?;
    let model = ServedModel {
        name: "scripted".to_owned(),
        aliases: Vec::new(),
        engine: Arc::new(engine),
        grammars: GrammarCompiler::new(Arc::clone(&text), GrammarLimits::default()),
        text,
        created_unix: 0,
        digest: "".into(),
        defaults: GenerationDefaults::default(),
    };
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
    let server = Server::bind(config, vec![model], Access::Keys(Arc::new(keys)), None)?;
    println!(
        "BASE_URL=http://{}/v1\nAPI_KEY={}\nMODEL=scripted",
        server.local_addr(),
        key.secret.expose()
    );
    server.run(std::future::pending()).await;
    Ok(())
}
