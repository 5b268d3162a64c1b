from report.style.links import PLACE, with_links


def test_every_section_has_an_address_and_a_link_to_it():
    page = with_links(f"<h1>x</h1>{PLACE}<h2>What <b>each</b>\nsite\nsent</h2><h2>a &lt;b&gt;</h2>")
    assert '<h2 id="s1">What' in page and '<h2 id="s2">a' in page
    assert '<a href="#s1">What each site sent</a>' in page
    assert '<a href="#s2">a &lt;b&gt;</a>' in page and PLACE not in page
