"""Eight invented firms: what each drafts most, and how it writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class House:
    """A firm and its house style.

    usual: the clause types it drafts often; the others come across its desk now and then.
    provider, customer: its defined terms for the two sides.
    works: what is provided, in the singular; deals: what it calls the contract.
    numbering: how it opens a paragraph; `{n}` and `{m}` are numbers.
    duties: its words for an obligation; openings: how it begins a sentence now and then.
    in_words: whether it writes small numbers as words.
    """

    name: str
    practice: str
    usual: tuple[str, ...]
    provider: tuple[str, ...]
    customer: tuple[str, ...]
    works: tuple[str, ...]
    deals: tuple[str, ...]
    numbering: str
    duties: tuple[str, ...]
    openings: tuple[str, ...]
    in_words: bool


HOUSES = (
    House(
        name="alder-vane",
        practice="technology",
        usual=(
            "licence_grant",
            "ip_ownership",
            "data_protection",
            "limitation_of_liability",
            "acceptance",
            "termination_for_convenience",
            "warranty",
            "audit_rights",
        ),
        provider=("Vendor", "Platform Provider"),
        customer=("Customer", "Subscriber"),
        works=("the Software", "the Platform", "the Hosted Service"),
        deals=("this Agreement", "this Subscription"),
        numbering="{n}.{m} ",
        duties=("shall", "will"),
        openings=("Save as the Order Form says otherwise, ", "At all times, "),
        in_words=False,
    ),
    House(
        name="brandt-okoye",
        practice="construction",
        usual=(
            "insurance",
            "acceptance",
            "subcontracting",
            "payment_terms",
            "force_majeure",
            "indemnity",
            "termination_for_cause",
            "dispute_resolution",
        ),
        provider=("Contractor", "Builder"),
        customer=("Employer", "Developer"),
        works=("the Tower", "the Foundation Work", "the Building Project"),
        deals=("this Contract", "this Building Contract"),
        numbering="Clause {n}({m}). ",
        duties=("shall", "must"),
        openings=("Without lessening anything in the Drawings, ", "For each stage, "),
        in_words=False,
    ),
    House(
        name="castellane",
        practice="distribution",
        usual=(
            "exclusivity",
            "non_compete",
            "term_and_renewal",
            "price_adjustment",
            "assignment",
            "governing_law",
            "termination_for_cause",
            "payment_terms",
        ),
        provider=("Supplier", "Manufacturer"),
        customer=("Distributor", "Dealer"),
        works=("the Product Range", "the Machinery", "the Equipment"),
        deals=("this Deed", "this Dealer Contract"),
        numbering="Art. {n} § {m} ",
        duties=("shall", "must"),
        openings=("The parties being merchants, ", "In dealings between the parties, "),
        in_words=True,
    ),
    House(
        name="dunmore-ito",
        practice="employment",
        usual=(
            "non_solicitation",
            "non_compete",
            "confidentiality",
            "ip_ownership",
            "termination_for_convenience",
            "change_of_control",
            "governing_law",
            "data_protection",
        ),
        provider=("Consultant", "Executive"),
        customer=("Company", "Firm"),
        works=("the Service", "the Mandate", "the Advisory Work"),
        deals=("this Engagement Letter", "this Letter"),
        numbering="({m}) ",
        duties=("must", "will"),
        openings=("As we discussed, ", "To keep matters plain, "),
        in_words=True,
    ),
    House(
        name="eastgate",
        practice="finance",
        usual=(
            "change_of_control",
            "assignment",
            "audit_rights",
            "indemnity",
            "limitation_of_liability",
            "dispute_resolution",
            "insurance",
            "price_adjustment",
        ),
        provider=("Service Provider", "Administrator"),
        customer=("Bank", "Institution"),
        works=("the Managed Service", "the Custody Service", "the Processing"),
        deals=("this Instrument", "this Agreement"),
        numbering="Section {n}.{m}. ",
        duties=("shall", "will"),
        openings=("Notwithstanding any course of dealing, ", "Subject to Applicable Rules, "),
        in_words=True,
    ),
    House(
        name="fenwick-sol",
        practice="life_sciences",
        usual=(
            "confidentiality",
            "term_and_renewal",
            "licence_grant",
            "warranty",
            "subcontracting",
            "exclusivity",
            "force_majeure",
            "non_solicitation",
        ),
        provider=("Research Centre", "Laboratory"),
        customer=("Sponsor", "Partner"),
        works=("the Study", "the Assay", "the Research Programme"),
        deals=("this Protocol Agreement", "this Contract"),
        numbering="{n}) ",
        duties=("will", "must"),
        openings=("Consistent with good practice, ", "In the interest of the patients, "),
        in_words=False,
    ),
    House(
        name="garrow-lind",
        practice="logistics",
        usual=(
            "force_majeure",
            "insurance",
            "price_adjustment",
            "payment_terms",
            "limitation_of_liability",
            "subcontracting",
            "term_and_renewal",
            "termination_for_cause",
        ),
        provider=("Carrier", "Forwarder"),
        customer=("Shipper", "Consignor"),
        works=("the Carriage", "the Freight Service", "the Warehousing"),
        deals=("this Framework", "this Carriage Contract"),
        numbering="§ {n} ({m}) ",
        duties=("must", "shall"),
        openings=("Unless a waybill says otherwise, ", "On every leg, "),
        in_words=False,
    ),
    House(
        name="harcourt-bey",
        practice="media",
        usual=(
            "licence_grant",
            "exclusivity",
            "ip_ownership",
            "assignment",
            "acceptance",
            "confidentiality",
            "termination_for_convenience",
            "dispute_resolution",
        ),
        provider=("Producer", "Studio"),
        customer=("Broadcaster", "Publisher"),
        works=("the Programme", "the Series", "the Recording"),
        deals=("this Production Deed", "this Agreement"),
        numbering="[{n}/{m}] ",
        duties=("shall", "will"),
        openings=("Across all media, ", "In keeping with the commissioning brief, "),
        in_words=True,
    ),
)
