//! A list in parts: what is shown of it, and links to the parts before and after. Pure.

use form_urlencoded::Serializer;
use maud::{Markup, html};

use super::text::figure;

/// A part of a list.
pub(super) struct Part {
    pub(super) offset: usize,
    /// The number of entries in a part.
    pub(super) size: usize,
    /// The number of entries in the whole list.
    pub(super) of: usize,
}

impl Part {
    /// The part of `list` that is shown.
    pub(super) fn slice<'a, T>(&self, list: &'a [T]) -> &'a [T] {
        let rest = list.get(self.offset..).unwrap_or_default();
        rest.get(..self.size).unwrap_or(rest)
    }

    /// Which entries are shown, and links to the others. Nothing if all are shown. The links are to the section `id`, with
    /// `filter` and the offset by the key `key`.
    pub(super) fn links(&self, id: &str, key: &str, filter: &[(&str, &str)]) -> Markup {
        let last = self.offset.saturating_add(self.size).min(self.of);
        let before = (self.offset > 0).then(|| self.offset.saturating_sub(self.size));
        let after = Some(last).filter(|next| *next < self.of);
        let to = |offset: usize| {
            let offset = Some((key, offset.to_string())).filter(|_| offset > 0);
            let filter = filter.iter().filter(|(_, value)| !value.is_empty());
            let query = Serializer::new(String::new()).extend_pairs(filter).extend_pairs(offset).finish();
            if query.is_empty() { format!("/#{id}") } else { format!("/?{query}#{id}") }
        };
        html! {
            @if before.is_some() || after.is_some() {
                nav class="pages" aria-label={ "Parts of " (id) } {
                    @if let Some(offset) = before { a rel="prev" href=(to(offset)) { "Previous" } } @else { span {} }
                    @if self.offset < last {
                        span { (figure(self.offset + 1)) "–" (figure(last)) " of " (figure(self.of)) }
                    } @else {
                        span { "past the end of " (figure(self.of)) }
                    }
                    @if let Some(offset) = after { a rel="next" href=(to(offset)) { "Next" } } @else { span {} }
                }
            }
        }
    }
}
