//! A parsed page.

use std::collections::BTreeSet;
use std::path::PathBuf;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::read;

/// The parts of a page that the tests use.
pub(crate) struct Page {
    /// Its path in the repository.
    pub(crate) path: PathBuf,
    /// The targets of its links and images.
    pub(crate) links: Vec<String>,
    /// The anchors of its headings, as GitHub and mdbook generate them.
    pub(crate) anchors: BTreeSet<String>,
    /// Its code blocks.
    pub(crate) blocks: Vec<Block>,
}

/// A code block.
#[derive(Default)]
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
    /// The last link above it.
    pub(crate) link_above: Option<String>,
}

impl Page {
    pub(crate) fn read(path: PathBuf) -> Self {
        let text = read(&path);
        let mut page = Self { path, links: Vec::new(), anchors: BTreeSet::new(), blocks: Vec::new() };
        let (mut heading, mut block): (Option<String>, Option<Block>) = (None, None);
        #[expect(clippy::wildcard_enum_match_arm, reason = "other events are text")]
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.anchors.insert(anchor(&heading.take().unwrap_or_default()));
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(language) => language.into_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    let link_above = page.links.last().cloned();
                    block = Some(Block { language, link_above, ..Block::default() });
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Text(text) | Event::Code(text) => {
                    let block = block.as_mut().map(|block| &mut block.text);
                    if let Some(open) = block.or(heading.as_mut()) {
                        open.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        page
    }
}

/// The anchor of a heading: its letters and digits in lower case, with a hyphen for each blank.
fn anchor(heading: &str) -> String {
    let convert = |c: char| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ => c.is_alphanumeric().then(|| c.to_ascii_lowercase()),
    };
    heading.trim().chars().filter_map(convert).collect()
}
