//! What is stored over restarts, limits and other projects' eyes. On real folders; a crash is what it leaves behind.

use std::io::Read;

use super::*;

fn open(folder: &Path, change: impl FnOnce(&mut StorageConfig)) -> Storage {
    let mut config = StorageConfig::in_folder(folder.join("files"));
    change(&mut config);
    Storage::open(config).unwrap()
}

fn put(storage: &Storage, project: &str, text: &str) -> Result<FileRecord, StorageError> {
    let mut upload = storage.begin()?;
    upload.write(text.as_bytes())?;
    let (purpose, filename) = ("batch".to_owned(), "in.jsonl".to_owned());
    storage.keep(project, upload, NewFile { purpose, filename, ..NewFile::default() })
}

fn document(input: &str) -> BatchDocument {
    serde_json::from_value(serde_json::json!({
        "endpoint": "/v1/completions", "input_file_id": input, "completion_window": "24h",
        "status": "validating", "key": "k", "errors": [], "created_at": 0, "expires_at": 0,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    }))
    .unwrap()
}

fn contents(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("files").join(CONTENT)).unwrap().count()
}

#[test]
fn files_stay_over_a_restart_and_remnants_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path(), |_| {});
    let kept = put(&storage, "a", "hello").unwrap();
    let upload = storage.begin().unwrap();
    let partial = upload.path_for_tests();
    // As a crash leaves them behind: an upload, and content that nobody was told of.
    std::mem::forget(upload);
    std::fs::write(storage.content("file-lost"), "x").unwrap();
    drop(storage);
    let storage = open(folder.path(), |_| {});
    assert!(!partial.exists());
    assert_eq!(contents(folder.path()), 1);
    let (found, mut content) = storage.open_file("a", &kept.id).unwrap();
    let mut text = String::new();
    content.read_to_string(&mut text).unwrap();
    assert_eq!((found, text.as_str()), (kept.clone(), "hello"));
    // Two programs over one folder would run batches twice.
    assert!(Storage::open(storage.config.clone()).is_err());
    // Another project finds nothing, and removes nothing.
    assert!(matches!(storage.file("b", &kept.id), Err(StorageError::NotFound)));
    assert!(matches!(storage.remove_file("b", &kept.id), Err(StorageError::NotFound)));
    storage.remove_file("a", &kept.id).unwrap();
    assert!(matches!(storage.file("a", &kept.id), Err(StorageError::NotFound)));
    assert_eq!(contents(folder.path()), 0);
}

#[test]
fn a_project_has_its_room_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path(), |config| {
        config.max_file_bytes = 10;
        config.max_project_bytes = 15;
        config.max_project_files = 3;
    });
    let check = |project, text: &str, expected: Option<&str>| {
        let put = put(&storage, project, text);
        assert_eq!(put.as_ref().err().map(ToString::to_string).as_deref(), expected);
        put.ok()
    };
    check("a", "12345678901", Some("a file has at most 10 bytes"));
    let first = check("a", "1234567890", None).unwrap();
    let full = "the project's files have 10 bytes and this one 6; the limit is 15";
    check("a", "123456", Some(full));
    check("b", "1234567890", None);
    check("a", "1234", None);
    check("a", "5", None);
    check("a", "", Some("the project has 3 files; the limit is 3"));
    storage.remove_file("a", &first.id).unwrap();
    check("a", "1234567890", None);
    assert_eq!(contents(folder.path()), 4);
}

#[test]
fn pages_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path(), |_| {});
    let ids: Vec<String> = (0..5).map(|n| put(&storage, "a", &n.to_string()).unwrap().id).collect();
    put(&storage, "b", "x").unwrap();
    let check = |ascending: bool| {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = FilePage { limit: 2, after, ascending, ..FilePage::default() };
            let (files, has_more) = storage.files("a", &page).unwrap();
            after = files.last().map(|file| file.id.clone());
            seen.extend(files.into_iter().map(|file| file.id));
            if !has_more {
                return seen;
            }
        }
    };
    assert_eq!(check(true), ids);
    assert_eq!(check(false), ids.iter().rev().cloned().collect::<Vec<_>>());
    let after = FilePage { limit: 2, after: Some(ids[0].clone()), ..FilePage::default() };
    assert!(matches!(storage.files("b", &after), Err(StorageError::NotFound)));
}

#[test]
fn a_line_keeps_its_first_result_and_all_become_files() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path(), |config| config.max_project_batches = 1);
    let input = put(&storage, "a", "line").unwrap();
    assert!(matches!(storage.add_batch("b", document(&input.id)), Err(StorageError::NotFound)));
    let batch = storage.add_batch("a", document(&input.id)).unwrap();
    let full = storage.add_batch("a", document(&input.id)).unwrap_err().to_string();
    assert_eq!(full, "the project has 1 batches that are not over; the limit is 1");
    // The input may go: the batch still reads it.
    storage.remove_file("a", &input.id).unwrap();
    storage.open_input(&input.id).unwrap();
    let result = |line, is_error, text: &str| LineResult { line, is_error, text: text.into() };
    let written = [result(2, false, "two"), result(0, true, "zero"), result(2, true, "again")];
    let counted = storage.add_results(&batch, &written).unwrap().document.request_counts;
    assert_eq!((counted.completed, counted.failed), (1, 1));
    storage.add_results(&batch, &[result(1, false, "one")]).unwrap();
    assert_eq!(storage.finished_lines(&batch.id).unwrap(), [0, 1, 2]);
    // Killed while its files are written, it is found as it was.
    drop(storage);
    let storage = open(folder.path(), |_| {});
    let to_do = storage.batches_to_do().unwrap();
    assert_eq!(to_do.len(), 1);
    let mut seen = Vec::new();
    let results = storage.write_results(&batch.id, |result| seen.push(result.line)).unwrap();
    assert_eq!(seen, [0, 1, 2]);
    let end = |document: &mut BatchDocument| document.status = BatchStatus::Completed;
    let over = storage.end_batch(&to_do[0], results, end).unwrap();
    let read = |id: Option<String>| {
        let (_, mut content) = storage.open_file("a", &id.unwrap()).unwrap();
        let mut text = String::new();
        content.read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(read(over.document.output_file_id.clone()), "one\ntwo\n");
    assert_eq!(read(over.document.error_file_id.clone()), "zero\n");
    assert!(storage.finished_lines(&batch.id).unwrap().is_empty());
    assert!(storage.batches_to_do().unwrap().is_empty());
    storage.sweep().unwrap();
    assert!(storage.open_input(&input.id).is_err(), "nobody needs the input any more");
    assert_eq!(storage.batch("a", &batch.id).unwrap(), over);
    assert!(matches!(storage.batch("b", &batch.id), Err(StorageError::NotFound)));
}

fn answer(project: &str, id: &str, text: &str, is_over: bool) -> AnswerRecord {
    AnswerRecord {
        id: id.to_owned(),
        project: project.to_owned(),
        model: "m".to_owned(),
        document: serde_json::json!({"text": text, "metadata": {"id": id}}).to_string(),
        input: "[]".to_owned(),
        steps: None,
        kept_at: None,
        is_over,
    }
}

/// The ids that a project still has, oldest first.
fn ids(storage: &Storage, project: &str) -> String {
    let page = AnswerPage { limit: 100, ascending: true, ..AnswerPage::default() };
    let (answers, _) = storage.answers(project, AnswerKind::Response, &page).unwrap();
    answers.into_iter().map(|answer| answer.id).collect()
}

#[test]
fn the_oldest_answers_make_room_and_running_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(600);
    let storage = open(folder.path(), |config| {
        let limits = AnswerLimits::default();
        config.answers =
            AnswerLimits { keep_days: 1, max_project: 3, max_project_bytes: 1500, ..limits };
    });
    let add = |project: &str, id: &str, text: &str, is_over| {
        storage.add_answer(AnswerKind::Response, &answer(project, id, text, is_over)).unwrap();
    };
    add("a", "1", "", false);
    for id in ["2", "3", "4"] {
        add("a", id, "", true);
    }
    add("b", "9", "", true);
    assert_eq!((ids(&storage, "a"), ids(&storage, "b")), ("134".to_owned(), "9".to_owned()));
    // By bytes: what is new stays, whatever its size.
    add("a", "5", &long, true);
    add("a", "6", &long, true);
    assert_eq!(ids(&storage, "a"), "156");
    let huge = answer("a", "6", &long.repeat(9), true);
    storage.change_answer(AnswerKind::Response, &huge).unwrap();
    assert_eq!(ids(&storage, "a"), "16");
    assert_eq!(storage.answers_to_end(AnswerKind::Response).unwrap().len(), 1);
    // A chat of this name is another thing.
    assert!(storage.answer("a", AnswerKind::Chat, "1").is_err());
    assert!(storage.answer("b", AnswerKind::Response, "1").is_err());
}

#[test]
fn what_has_expired_is_found_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path(), |_| {});
    for id in ["1", "2"] {
        storage.add_answer(AnswerKind::Response, &answer("a", id, "", true)).unwrap();
    }
    storage.index().execute("UPDATE answers SET expires = 1 WHERE id = '1'", []).unwrap();
    assert_eq!(ids(&storage, "a"), "2");
    assert!(storage.answer("a", AnswerKind::Response, "1").is_err());
    storage.sweep().unwrap();
    let left: u64 =
        storage.index().query_row("SELECT COUNT(*) FROM answers", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 1);
    let page = |key: &str, value: &str| AnswerPage {
        metadata: vec![(key.to_owned(), value.to_owned())],
        limit: 9,
        ..AnswerPage::default()
    };
    let found = |page| storage.answers("a", AnswerKind::Response, &page).unwrap().0.len();
    assert_eq!((found(page("id", "2")), found(page("id", "1")), found(page("x'", "2"))), (1, 0, 0));
}

#[test]
fn a_folder_of_an_earlier_version_gets_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), |_| {}));
    let index = Connection::open(folder.path().join("files").join(INDEX)).unwrap();
    index.execute_batch("ALTER TABLE files DROP COLUMN description").unwrap();
    drop(index);
    let storage = open(folder.path(), |_| {});
    let kept = put(&storage, "a", "x").unwrap();
    assert_eq!(storage.file("a", &kept.id).unwrap(), kept);
}

fn task(project: &str, id: &str, status: TaskStatus) -> TaskRecord {
    TaskRecord {
        id: id.to_owned(),
        project: project.to_owned(),
        model: "m".to_owned(),
        document: TaskDocument {
            status,
            path: String::new(),
            key: "k".to_owned(),
            client: String::new(),
            request_id: String::new(),
            submitted_ms: 1000,
            scheduled_ms: None,
            ended_ms: None,
            code: None,
            message: None,
        },
        input: "{}".to_owned(),
        answer: None,
        kept_at: String::new(),
    }
}

#[test]
fn tasks_are_open_until_they_are_over_and_only_so_many() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path(), |config| {
        config.answers = AnswerLimits { max_project_tasks: 2, max_project: 2, ..config.answers };
    });
    let open_ids =
        || -> String { storage.open_tasks().unwrap().into_iter().map(|(_, id)| id).collect() };
    let pending = |id: &str| task("a", id, TaskStatus::Pending);
    assert_eq!(storage.add_task(&pending("1")).unwrap(), None);
    assert_eq!(storage.add_task(&pending("2")).unwrap(), None);
    let full = storage.add_task(&pending("3")).unwrap_err().to_string();
    assert_eq!(full, "the project has 2 tasks that are not over; the limit is 2");
    // One that is there already is told, however many there are; to its own project.
    assert_eq!(storage.add_task(&pending("2")).unwrap(), Some(pending("2")));
    assert!(storage.task("b", "2").is_err());
    assert_eq!(storage.add_task(&task("b", "4", TaskStatus::Pending)).unwrap(), None);
    assert_eq!(open_ids(), "124");
    let mut over = task("a", "1", TaskStatus::Succeeded);
    over.answer = Some("{}".to_owned());
    storage.change_task(&over).unwrap();
    assert_eq!(storage.task("a", "1").unwrap(), TaskRecord { input: String::new(), ..over });
    assert_eq!(open_ids(), "24");
    // It makes room for a third; the open one stays.
    assert_eq!(storage.add_task(&pending("3")).unwrap(), None);
    assert!(storage.task("a", "1").is_err());
    assert_eq!(open_ids(), "243");
    // What nobody can ask for any more is not run, and its id is free.
    storage.index().execute("UPDATE answers SET expires = 1 WHERE id = '2'", []).unwrap();
    assert!(storage.task("a", "2").is_err());
    assert_eq!(open_ids(), "43");
    storage.index().execute("UPDATE answers SET expires = 1 WHERE id = '3'", []).unwrap();
    assert_eq!(storage.add_task(&pending("3")).unwrap(), None);
}

#[test]
fn expired_tasks_take_no_place_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path(), |config| config.answers.max_project_tasks = 1);
    let pending = |id: &str| task("a", id, TaskStatus::Pending);
    storage.add_task(&pending("1")).unwrap();
    assert!(storage.add_task(&pending("2")).is_err());
    storage.index().execute("UPDATE answers SET expires = 1", []).unwrap();
    assert_eq!(storage.add_task(&pending("2")).unwrap(), None);
    // Other answers that run are ended by who runs them.
    storage.add_answer(AnswerKind::Response, &answer("a", "3", "", false)).unwrap();
    storage.index().execute("UPDATE answers SET expires = 1 WHERE id = '3'", []).unwrap();
    storage.sweep().unwrap();
    let index = storage.index();
    let mut left = index.prepare("SELECT id FROM answers ORDER BY number").unwrap();
    let left = left.query_map([], |row| row.get(0)).unwrap();
    assert_eq!(left.collect::<Result<Vec<String>, _>>().unwrap(), ["2", "3"]);
}

#[test]
fn a_failed_task_makes_way_for_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path(), |config| config.answers.max_project_tasks = 1);
    let add = |id: &str| storage.add_task(&task("a", id, TaskStatus::Pending));
    for (id, status) in [("1", TaskStatus::Failed), ("2", TaskStatus::Canceled)] {
        assert_eq!(add(id).unwrap(), None);
        storage.change_task(&task("a", id, status)).unwrap();
    }
    assert!(add("2").unwrap().is_some());
    assert_eq!(add("1").unwrap(), None);
    assert_eq!(storage.task("a", "1").unwrap().document.status, TaskStatus::Pending);
    // Without a place it stays.
    storage.change_task(&task("a", "1", TaskStatus::Failed)).unwrap();
    add("3").unwrap();
    assert!(add("1").is_err());
    assert_eq!(storage.task("a", "1").unwrap().document.status, TaskStatus::Failed);
}
